"""Message providers: one module each (console, smtp, whatsapp, twilio, vonage), their guard, routing and templates."""
