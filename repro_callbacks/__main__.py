"""``python -m repro_callbacks`` is ``repro-callbacks``."""

from repro_callbacks.command.main import main

if __name__ == "__main__":
    raise SystemExit(main())
