"""The report of a study."""

from .runs import Study


def report(study: Study, formats=("md", "html", "latex")) -> str:
    return "\n".join(v.sentence() for v in study.verdicts())
