"""The web page and the HTTP endpoints of `sample.py --serve`."""
