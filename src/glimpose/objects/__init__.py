"""The object track: 6D poses of objects of which only CAD models and unlabelled photographs exist."""
