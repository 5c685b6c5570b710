"""The HTTP face: the Open Inference Protocol and the report page."""
