"""DICOM files to frames for the pixel path, and pseudonyms of patients: ``frames`` is the door."""
