"""What the process's environment must say before torch is loaded."""

from collections.abc import MutableMapping

# Threads of torch wait for each other in a loop, by default for about a millisecond. On a processor
# that others use too, a quantization takes 412 s so, and 63 s with this count; alone 32 and 35 s
# (2 cores, libgomp of torch 2.13). It is read when torch is loaded.
_SPINS = "1000"


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Edits the environment: OpenMP's threads soon sleep while waiting, unless told otherwise."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)
