"""Every entry of the registry at full size, for the meta device: {name: function that builds the network}."""

import functools

import published

import models

LANGUAGE, PUBLISHED = {}, {}
for name in published.ENTRIES:
    known = LANGUAGE if models.MODELS[name]["kind"] == "language" else PUBLISHED
    known[name] = functools.partial(published.network, published.config_of(name))
