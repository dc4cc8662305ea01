"""Labels from people: jobs for labelling tools out, their exports in. Formats: label_studio, cvat, png."""

from segue.labelling.answers import Report, import_answers
from segue.labelling.export import TOOLS, export
from segue.labelling.job import LabellingError
from segue.labelling.show import lines

__all__ = ["TOOLS", "LabellingError", "Report", "export", "import_answers", "lines"]
