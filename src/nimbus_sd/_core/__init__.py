"""Names, errors, validation, lazy exports: what every other floor stands on."""
