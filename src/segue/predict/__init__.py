"""From pictures to files: label maps, colours, comparisons, films, and a look at what a server is to get.

``network`` (one model, or several by their mean probability, asked as scoring asks), ``inputs`` (what to predict and
where it goes), ``truth`` (labels matched by name), ``draw``, ``film``, ``files`` (the loop) and ``check``.
"""

from segue.predict.files import Incomplete, Look, Outcome, predict_folder
from segue.predict.network import Network

__all__ = ["Incomplete", "Look", "Network", "Outcome", "predict_folder"]
