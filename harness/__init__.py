"""Training, scoring and comparing preference-optimisation methods, with seeds and intervals."""

import logging

# Imported by peft wherever it is installed, bitsandbytes would say in every process that a kernel
# of the hub, which nothing here asks for, could not be fetched.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
