"""Scores of generated pictures by named protocols: FID, precision and recall, CLIP score, HPSv2."""
