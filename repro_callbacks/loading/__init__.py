"""Loading data as a function of position: any number of workers, exact resume, one sample drawn again alone."""

from repro_callbacks.loading.loader import KeyedLoader, Start, keyed
from repro_callbacks.loading.workers import worker_init_fn

__all__ = ["KeyedLoader", "Start", "keyed", "worker_init_fn"]
