"""Does a latent reward teach a generator as well as a pixel reward, and at what cost?"""
