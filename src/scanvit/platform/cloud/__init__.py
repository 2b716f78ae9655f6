"""Machines elsewhere: leased from Chameleon Cloud (``chameleon``, over ``openstack``), and set up over ssh (``remote``)."""
