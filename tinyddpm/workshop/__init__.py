"""What keeps a run alive, fast and visible; there is no mathematics in here."""
