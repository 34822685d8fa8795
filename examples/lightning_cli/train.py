"""LightningCLI with the callback named in YAML; no line of Python is about determinism.

python examples/lightning_cli/train.py fit --config examples/lightning_cli/config.yaml
python examples/lightning_cli/train.py fit --config examples/lightning_cli/config.yaml --data.num_workers 0
"""

from lightning.pytorch.cli import LightningCLI

from repro_callbacks.command.demo.brain import BrainPatches, BrainSegmenter
from repro_callbacks.fingerprint.digest import digest_state


def main() -> None:
    cli = LightningCLI(BrainSegmenter, BrainPatches, save_config_kwargs={"overwrite": True})
    print(f"digest of the final weights: {digest_state(cli.model)}")


if __name__ == "__main__":
    main()
