"""Loading data as a function of position: any number of workers, exact resume, one sample drawn again alone."""

from repro_callbacks.loading.loader import KeyedLoader, Start, check_num_workers, keyed
from repro_callbacks.loading.workers import worker_init_fn

__all__ = ["KeyedLoader", "Start", "check_num_workers", "keyed", "worker_init_fn"]
