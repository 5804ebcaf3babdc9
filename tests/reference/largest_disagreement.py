"""How far apart torch and the NumPy engine were in the laws of `test_autograd.py`.

`python -m tests.reference.largest_disagreement` runs them and prints, for each network,
the largest of max|torch - NumPy| / max|NumPy| over L_simple, x_t and every parameter.
HYPOTHESIS_PROFILE says how many examples.
"""

from .. import conftest
from . import test_autograd

if __name__ == "__main__":
    print(f"profile {conftest.PROFILE}")
    for name, law in vars(test_autograd).items():
        if name.endswith("_gradients_are_those_of_numpy"):
            law()
    for network, disagreement in test_autograd.largest.items():
        print(f"{network}: {disagreement:.1e}")
