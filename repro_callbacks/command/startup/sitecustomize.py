"""Imported by every Python that starts below ``repro-callbacks run``, before anything of the script.

``run`` puts this folder, which holds nothing else, on ``PYTHONPATH``; Python imports ``sitecustomize`` when it starts.
A ``sitecustomize`` that the environment has of its own is run as well, and the folder leaves ``sys.path`` again, so
that the script sees what it sees elsewhere. A Python that has no ``repro_callbacks`` is left as it is.
"""

import importlib.machinery
import importlib.util
import os
import sys


def _start() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    try:
        from repro_callbacks.command import seeding
    except ImportError:
        pass  # another environment's Python; `run` says so at the end if no trainer was found
    else:
        seeding.start(os.environ)
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_start()
