"""One HTML file that shows a run, or compares several: verdict, pictures, curves, settings. No torch in here."""

from sidlsg.report.page import write

__all__ = ["write"]
