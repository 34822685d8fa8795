"""The fingerprint of MONAI's and Ignite's engines."""

import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import GanTrainer, SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import MeanAbsoluteError, ValidationHandler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from repro_callbacks import compare
from repro_callbacks.fingerprint.runs import Run
from repro_callbacks.handlers import FingerprintHandler
from tests.handlers.training import BATCH, LENGTH, SAMPLES, Draws, Images, StopAt, make_net, run


def lines(handler, kind="step"):
    return [line for line in map(json.loads, handler.file.read_text().splitlines()) if line["kind"] == kind]


def test_a_line_for_each_iteration(tmp_path):
    handler = FingerprintHandler(tmp_path)
    run(handlers=[handler], validation=1)
    found = lines(handler)
    assert [(line["epoch"], line["batch"], line["number"]) for line in found] == [
        (*divmod(number, LENGTH), number) for number in range(3 * LENGTH)
    ]
    assert all(
        {"data", "indices", "before", "after", "loss", "gradients", "parameters"} <= line.keys() for line in found
    )
    assert sorted(index for line in found[:LENGTH] for index in line["indices"]) == list(range(SAMPLES))
    assert [len(line["indices"]) for line in found[:LENGTH]] == [BATCH] * (LENGTH - 1) + [SAMPLES % BATCH]
    assert len(lines(handler, "end")) == 1


class Seeded(Images):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)


@pytest.mark.slow
def test_with_and_without_it_the_training_is_the_same(tmp_path):
    methods = dict(vars(_BaseDataLoaderIter))
    for determinism in (True, None):
        settings = {"determinism": determinism, "dataset": Seeded}
        with_it = run(handlers=[FingerprintHandler(tmp_path / str(determinism))], **settings)
        without = run(**settings)
        assert with_it.state == without.state
        assert with_it.seen == without.seen
    assert dict(vars(_BaseDataLoaderIter)) == methods


@pytest.mark.slow
@pytest.mark.parametrize(
    "circumstance",
    [{}, {"loader_kwargs": {"num_workers": 2}}, {"last": [Draws()]}, {"validation": 1}],
    ids=["again", "workers", "a handler that draws", "validation"],
)
def test_equal_runs_are_equal(tmp_path, circumstance):
    run(handlers=[FingerprintHandler(tmp_path / "a")])
    run(handlers=[FingerprintHandler(tmp_path / "b")], **circumstance)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.equal, str(found)


@pytest.mark.slow
def test_without_determinism_the_workers_make_a_difference(tmp_path):
    run(handlers=[FingerprintHandler(tmp_path / "a")], determinism=None)
    run(handlers=[FingerprintHandler(tmp_path / "b")], determinism=None, loader_kwargs={"num_workers": 2})
    found = compare(tmp_path / "a", tmp_path / "b").divergence
    assert found.cause in ("content of a sample", "order of samples")
    assert (found.epoch, found.batch) == (0, 0)


class FlipsGradient:
    def attach(self, engine):
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine):
        if engine.state.iteration == LENGTH + 3:
            engine.network[1].weight.grad.view(-1).view(torch.int32)[5] ^= 1


def test_a_bit_of_a_gradient(tmp_path):
    run(handlers=[FingerprintHandler(tmp_path / "a")])
    run(handlers=[FlipsGradient(), FingerprintHandler(tmp_path / "b")])
    found = compare(tmp_path / "a", tmp_path / "b").divergence
    assert (found.cause, found.epoch, found.batch) == ("gradient", 1, 2)
    assert "1 of 4 gradients differ: that of 1.weight" in found.details[0]


def test_metrics_of_an_evaluator(tmp_path):
    net, handler = make_net(), FingerprintHandler(tmp_path)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Images(8), 4),
        network=net,
        key_val_metric={"error": MeanAbsoluteError(output_transform=lambda output: (output["pred"], output["label"]))},
        val_handlers=[handler],
        decollate=False,
    )
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=DataLoader(Images(), BATCH),
        network=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        loss_function=nn.MSELoss(),
        train_handlers=[ValidationHandler(1, evaluator), handler],
        decollate=False,
    )
    seen = []
    evaluator.add_event_handler(Events.COMPLETED, lambda engine: seen.append(float(engine.state.metrics["error"])))
    trainer.run()
    found = lines(handler, "validation")
    assert [(line["epoch"], line["batch"]) for line in found] == [(epoch, LENGTH - 1) for epoch in range(3)]
    assert [line["metrics"] for line in found] == [{"error": value.hex()} for value in seen]


@pytest.mark.slow
@pytest.mark.parametrize("same_path", [True, False])
def test_a_resumed_run_continues(tmp_path, same_path):
    straight = FingerprintHandler(tmp_path / "straight")
    run(handlers=[straight])
    stopped = FingerprintHandler(tmp_path / "stopped")
    outcome = resumable(stopped, save=tmp_path / "saved", last=[StopAt(LENGTH + 5)])
    checkpoint = next(file for file in outcome.files if f"iteration={LENGTH + 2}" in file.name)
    resumed = FingerprintHandler(tmp_path / ("stopped" if same_path else "resumed"))
    resumable(resumed, load=checkpoint)
    found = compare(tmp_path / "straight", resumed.file)
    assert found.equal, str(found)
    assert "B was resumed at epoch 1, batch 2" in str(found)
    assert Run(resumed.file).last()["chain"] == Run(straight.file).last()["chain"]


def resumable(handler, **settings):
    """Run with the fingerprint among what is saved and loaded, before the checkpoint is saved."""
    from repro_callbacks import DeterminismHandler
    from tests.handlers.training import SEED

    class Both(DeterminismHandler):
        def state_dict(self):
            return {"determinism": super().state_dict(), "fingerprint": handler.state_dict()}

        def load_state_dict(self, state):
            super().load_state_dict(state["determinism"])
            handler.load_state_dict(state["fingerprint"])

    return run(determinism=Both(SEED), handlers=[handler], **settings)


def test_a_plain_ignite_engine(tmp_path):
    def train(path):
        torch.manual_seed(0)
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)

        def step(engine, batch):
            optimizer.zero_grad()
            loss = net(batch[0]).square().mean()
            loss.backward()
            optimizer.step()
            return {"loss": loss.item()}

        engine = Engine(step)
        handler = FingerprintHandler(path, module=net, optimizers=[optimizer])
        handler.attach(engine)
        data = TensorDataset(torch.linspace(0, 1, 12 * 64).reshape(12, 1, 8, 8))
        engine.run(DataLoader(data, 4, shuffle=True), max_epochs=2)
        return handler

    found = [train(tmp_path / name) for name in "ab"]
    assert compare(found[0].file, found[1].file).equal
    assert all({"loss", "gradients", "parameters", "data"} <= line.keys() for line in lines(found[0]))
    assert len({line["gradients"] for line in lines(found[0])}) == 6


def test_two_networks(tmp_path):
    def train(path):
        torch.manual_seed(0)
        generator, critic = nn.Linear(3, 4), nn.Linear(4, 1)
        handler = FingerprintHandler(path)
        trainer = GanTrainer(
            device=torch.device("cpu"),
            max_epochs=2,
            train_data_loader=DataLoader(torch.randn(8, 4), 4),
            g_network=generator,
            g_optimizer=torch.optim.Adam(generator.parameters()),
            g_loss_function=lambda out: out.mean(),
            d_network=critic,
            d_optimizer=torch.optim.Adam(critic.parameters()),
            d_loss_function=lambda fake, real: critic(fake).mean() - critic(real).mean(),
            g_inferer=lambda latent, net: net(latent),
            d_inferer=lambda data, net: net(data),
            latent_shape=3,
            d_prepare_batch=lambda batch, device, non_blocking: batch.to(device),
            g_prepare_batch=lambda num_latents, latent_size, **kwargs: torch.randn(num_latents, latent_size),
            train_handlers=[handler],
            decollate=False,
        )
        trainer.run()
        return handler

    found = [train(tmp_path / name) for name in "ab"]
    assert compare(found[0].file, found[1].file).equal
    names = [name.split(" ")[0] for name in lines(found[0], "head")[0]["parameters"]]
    assert names == ["g_network.weight", "g_network.bias", "d_network.weight", "d_network.bias"]


def test_what_is_not_known_is_refused(tmp_path):
    engine = Engine(lambda engine, batch: None)
    FingerprintHandler(tmp_path).attach(engine)
    with pytest.raises(ValueError, match="does not say what it trains"):
        engine.run([1, 2])
    with pytest.raises(TypeError, match="not to str"):
        FingerprintHandler(tmp_path).attach("engine")
