"""What a person looks at: tables and plots of a run."""
