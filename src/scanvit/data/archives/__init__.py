"""Folders, zip and tar archives and MedMNIST files, read member by member: ``open.open_archive`` is the door."""
