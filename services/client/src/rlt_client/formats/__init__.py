"""Prompt formats as data: TOML templates with placeholders and no logic, byte-exact, hashed into every result."""

from rlt_client.formats.model import (
    Format,
    FormatError,
    Probe,
    StudentFormat,
    TeacherFormat,
    load_format,
    load_formats,
    shipped_formats,
)

__all__ = [
    "Format",
    "FormatError",
    "Probe",
    "StudentFormat",
    "TeacherFormat",
    "load_format",
    "load_formats",
    "shipped_formats",
]
