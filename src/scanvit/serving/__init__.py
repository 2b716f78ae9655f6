"""A network on a web page and behind an HTTP API, for trying it as a second reader. Nothing that is sent is kept."""
