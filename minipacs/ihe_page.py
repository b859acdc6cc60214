"""Writes `docs/ihe.md` from the claims: `python -m minipacs.ihe_page` (`make docs`)."""

from __future__ import annotations

from archive.config import Settings
from dicom_scp.stated_services import markdown
from minipacs.ihe import parts

_HEAD = """\
# IHE integration statement

Made from `minipacs/ihe.py` by `make docs`, for the default settings; a test checks that it is current, and that each
claim has its checks. `minipacs statement ihe` says the same of a running configuration, with the day.

"""


def page() -> str:
    """The whole page, in Markdown."""
    return _HEAD + markdown(list(parts(Settings(), on=None)))


if __name__ == "__main__":
    print(page(), end="")
