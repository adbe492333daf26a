"""What all stages share: starting jobs of `hmsa_core`, measuring a teacher, the machine."""
