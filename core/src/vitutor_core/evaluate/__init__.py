"""What a trained model is worth: accuracy and calibration, size, operations, speed."""
