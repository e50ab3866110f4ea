"""Pictures, animations and pages."""
