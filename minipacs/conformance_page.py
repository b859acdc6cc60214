"""Writes `docs/conformance.md` from the port's own tables: `python -m minipacs.conformance_page` (`make docs`)."""

from __future__ import annotations

from api import statement as web
from archive.config import Settings
from dicom_scp.stated_services import markdown
from dicom_scp.statement import statement

_HEAD = """\
# DICOM conformance statement

Made from `dicom_scp/`, `api/` and `archive/` by `make docs`, for the default settings; a test checks that it is
current. `minipacs statement dicom` and `dicomweb` say the same of a running configuration. How and why:
[dicom.md](dicom.md), DICOMweb: [dicomweb.md](dicomweb.md).

"""


def page() -> str:
    """The whole page, in Markdown."""
    return _HEAD + markdown(statement(Settings())) + "\n" + web.statement(Settings())


if __name__ == "__main__":
    print(page(), end="")
