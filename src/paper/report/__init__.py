"""Tables, figures and pages, as functions of the records."""
