"""Did it work, at what cost? Base and edited model on the same noise, judged, with intervals."""
