"""What do many runs say together?"""
