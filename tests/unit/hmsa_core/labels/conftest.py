"""Property tests of this folder run without deadlines: the first call of a function fills caches."""

from hypothesis import settings

settings.register_profile("labels", deadline=None)
settings.load_profile("labels")
