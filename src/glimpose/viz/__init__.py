"""Pictures for people: poses drawn over photographs, and reports."""
