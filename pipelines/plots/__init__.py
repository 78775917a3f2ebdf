"""Pictures for people, drawn with matplotlib's file backend and, the contact sheets, with Pillow."""

from pipelines.plots.confusion import confusion_matrix, most_confused, per_class_accuracy
from pipelines.plots.curves import learning_curves, where_time_goes
from pipelines.plots.data import class_histogram, duration_histogram, failures_by_reason
from pipelines.plots.mistakes import worst_mistakes

__all__ = [
    "class_histogram",
    "confusion_matrix",
    "duration_histogram",
    "failures_by_reason",
    "learning_curves",
    "most_confused",
    "per_class_accuracy",
    "where_time_goes",
    "worst_mistakes",
]
