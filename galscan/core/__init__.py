"""What every package uses: errors, atomic files, staging folders, the data home, progress, devices, the sky."""
