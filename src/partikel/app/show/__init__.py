"""Pictures, animations and pages."""

import contextlib
import os

# a launcher's backend (Jupyter's, say) that is not installed here forbids even the import of matplotlib
_backend = os.environ.pop("MPLBACKEND", None)
if _backend is not None:
    import matplotlib

    os.environ["MPLBACKEND"] = _backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend
