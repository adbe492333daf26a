"""Code that all stages share: start jobs of `hmsa_core`, measure a teacher, describe the machine."""
