"""``segue annotate``: what runs with an ``annotate`` block have chosen, and the labels of people for it."""

from __future__ import annotations

import typer

from segue.cli import annotate_analyse, annotate_export, annotate_import, annotate_review

app = typer.Typer(no_args_is_help=True, help=__doc__)
app.command("export")(annotate_export.export_labels)
app.command("import")(annotate_import.import_labels)
app.command()(annotate_review.review)
app.command()(annotate_analyse.analyse)
