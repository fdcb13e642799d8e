"""Installs trainwire's hooks in a Python process started by `trainwire run`, then runs the user's `sitecustomize`.

Python imports the first `sitecustomize` on its path at startup, and the launcher puts this folder first on
PYTHONPATH. The training may use another Python than trainwire: this file and `trainwire_hooks` need nothing
outside the standard library of Python 3.9.
"""

import os
import sys
from importlib.machinery import PathFinder

HERE = os.path.dirname(os.path.abspath(__file__))


def run_hidden() -> None:
    """Run the next `sitecustomize` on `sys.path`: Python would have imported it if this file were not there."""
    others = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != HERE]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec  # noqa: PLC0415 - costs a few milliseconds

        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


try:
    import trainwire_hooks  # type: ignore[import-not-found] # beside this file

    trainwire_hooks.install()
except Exception as exc:  # noqa: BLE001 - a broken hook is no reason not to train
    if "trainwire_hooks" in sys.modules:
        sys.modules["trainwire_hooks"].note_failure("start", exc)

run_hidden()
