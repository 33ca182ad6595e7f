"""The conversion report as one page that needs nothing else."""

from xlmfam.conversion.report import Conversion


def html_page(conversion: Conversion) -> str:
    """Return the page."""
    return f"<pre>{conversion}</pre>"
