"""Makes sure that the `schemas` Python finds is trainwire's and not a package of the trainer's own."""

from __future__ import annotations

import os.path  # pathlib would be a tenth of what `import ingest` may cost
import sys
from importlib.util import find_spec


def ensure_own_schemas() -> None:
    """Raise `ImportError` with one sentence when a foreign `schemas` hides the one next to `ingest`."""
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    found = _where_schemas_is()
    if found is None or os.path.realpath(os.path.dirname(found)) == os.path.join(home, "schemas"):
        return
    raise ImportError(
        f"trainwire needs its own package 'schemas' but Python finds {found} first: rename that one, "
        f"or put trainwire's folder {home} before it on sys.path",
        name="schemas",
        path=found,
    )


def _where_schemas_is() -> str | None:
    """Return the file that `import schemas` gives, without running it; None when there is nothing."""
    loaded = sys.modules.get("schemas")
    spec = getattr(loaded, "__spec__", None) if loaded is not None else find_spec("schemas")
    origin = getattr(loaded, "__file__", None) or (spec.origin if spec is not None else None)
    if origin is not None:
        return str(origin)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return f"{folders[0]} (a folder without __init__.py)" if folders else None
