"""What a model says of every region of a data set: statistics in one pass over the images, and densities from them."""

from segue.survey.densities import DensitiesConfig, Mixtures, fill_densities
from segue.survey.run import Look, SurveyError, predicted_map, survey

__all__ = ["DensitiesConfig", "Look", "Mixtures", "SurveyError", "fill_densities", "predicted_map", "survey"]
