"""What keeps the notebooks of the course executed, releases them to students and grades what comes back."""
