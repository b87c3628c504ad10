"""The web page and the HTTP endpoint of `sample.py --serve`."""
