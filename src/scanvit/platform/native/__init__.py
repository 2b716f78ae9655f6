"""The services as plain processes of this machine: ``plan`` says which, the ``supervisor`` keeps them alive, ``engine`` is how the platform drives it."""
