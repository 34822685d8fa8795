"""What we read of an engine that Ignite and MONAI do not document: a new version that moves it is told here."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.engines import EnsembleEvaluator, SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import SmartCacheHandler
from torch import nn

from repro_callbacks.handlers import engine as engines
from tests.handlers.test_smartcache import smart

CPU = torch.device("cpu")


def trainer(**kwargs: Any) -> SupervisedTrainer:
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    return SupervisedTrainer(CPU, 1, [torch.zeros(1)], net, optimizer, nn.MSELoss(), decollate=False, **kwargs)


def test_every_event_passes_through_one_method() -> None:
    """Should Ignite rename ``Engine._fire_event``, this says so."""
    engine = Engine(lambda engine, batch: engine.fire_event("custom"))
    engine.register_events("custom")
    seen: list[str] = []

    def fire(event: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(engines.event_name(event))
        before(event, *args, **kwargs)

    before = engines.replace_firing(engine, fire)
    engine.run([0])
    assert seen == [
        "started",
        "epoch_started",
        "get_batch_started",
        "get_batch_completed",
        "iteration_started",
        "custom",
        "iteration_completed",
        "epoch_completed",
        "completed",
    ]
    engines.restore_firing(engine)
    engine.run([0])
    assert len(seen) == 9


def test_who_listens_is_known() -> None:
    """Should Ignite rename ``Engine._event_handlers``, this says so."""
    engine = Engine(lambda engine, batch: None)

    def listener() -> None:
        pass

    assert engines.listeners(engine, Events.STARTED) == []
    engine.add_event_handler(Events.STARTED, listener)
    assert engines.listeners(engine, Events.STARTED) == [listener]
    assert engines.listeners(engine, "never registered") == []


def test_core_events_are_told_from_those_of_a_process_function() -> None:
    assert all(engines.is_core(event) for event in Events)
    assert not any(engines.is_core(event) for event in (*IterationEvents, "custom"))


def test_monais_engines_are_recognised() -> None:
    evaluator = SupervisedEvaluator(CPU, [0], nn.Linear(1, 1))
    assert (engines.is_trainer(trainer()), engines.is_evaluator(trainer())) == (True, False)
    assert (engines.is_trainer(evaluator), engines.is_evaluator(evaluator)) == (False, True)
    plain = Engine(lambda engine, batch: None)
    assert (engines.is_trainer(plain), engines.is_evaluator(plain)) == (False, False)


def test_networks_are_found() -> None:
    train = trainer()
    assert engines.networks(train) == {"network": train.network}
    nets = [nn.Linear(1, 1), nn.Linear(1, 1)]
    ensemble = EnsembleEvaluator(CPU, [0], nets, ["a", "b"])
    assert engines.networks(ensemble) == {"networks.0": nets[0], "networks.1": nets[1]}
    assert engines.networks(Engine(lambda engine, batch: None)) == {}


def test_metrics_of_an_epoch_are_found() -> None:
    assert engines.epoch_metrics(trainer()) == []
    assert engines.epoch_metrics(trainer(key_train_metric={"a": Average()})) == ["Average"]


def test_smart_caches_are_found() -> None:
    data = smart()
    assert list(engines.smart_caches(trainer(key_train_metric={"a": Average()}))) == []
    assert list(engines.smart_caches(trainer(train_handlers=[SmartCacheHandler(data)]))) == [data]


@pytest.mark.slow
def test_a_plain_engine_does_not_import_monai() -> None:
    script = (
        "import sys, torch\n"
        "from ignite.engine import Engine\n"
        "from repro_callbacks import DeterminismHandler\n"
        "engine = Engine(lambda engine, batch: None)\n"
        "DeterminismHandler(0).attach(engine)\n"
        "engine.run(torch.utils.data.DataLoader([0]))\n"
        "print('monai' in sys.modules, 'lightning' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "False"], done.stderr


@pytest.mark.slow
def test_without_ignite_the_error_says_what_to_install() -> None:
    script = "import sys\nsys.modules['ignite'] = None\nfrom repro_callbacks import DeterminismHandler\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert "need pytorch-ignite, on which MONAI's engines stand" in done.stderr
    assert "pip install 'repro-callbacks[monai]'" in done.stderr
