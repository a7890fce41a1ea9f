"""The services of Downstack and the chassis they stand on."""
