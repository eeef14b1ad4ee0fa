"""The words, numbers, amounts and times of the pages, in English and Indonesian."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from html import escape

from pulsa.credit.v1.money_pb2 import Money

_NANOS = Decimal(1_000_000_000)
_SYMBOLS = {"en": {"IDR": "Rp", "USD": "$"}, "id": {"IDR": "Rp", "USD": "US$"}}
_MONTHS = {
    "en": ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"],
    "id": ["Jan", "Feb", "Mar", "Apr", "Mei", "Jun", "Jul", "Agu", "Sep", "Okt", "Nov", "Des"],
}

_ENGLISH = {
    "language": "English",
    "billing": "Billing",
    "balance": "Balance",
    "history": "History",
    "credits": "{credits} credits",
    "available": "credits available",
    "pays_for": "pays for {sends}",
    "CHANNEL_EMAIL": "{sends} e-mails",
    "CHANNEL_WHATSAPP": "{sends} WhatsApp messages",
    "CHANNEL_SMS": "{sends} SMS",
    "low": "Your balance is low",
    "low_detail": "It is below {threshold} credits. Without credits no codes are sent.",
    "top_up": "Top Up Balance",
    "off_permission": "Only people with the permission Subscribe can buy credits. Ask an administrator of your team.",
    "off_open": "Complete or cancel the open invoice first.",
    "off_partly": "A part is paid, so it cannot be canceled.",
    "amount": "Credits",
    "custom": "Other amount",
    "custom_amount": "Other amount: {minimum} or more credits",
    "currency": "Currency",
    "unit_price": "Price of a credit",
    "subtotal": "Subtotal",
    "tax": "Tax",
    "tax_estimated": "Tax (estimated, the invoice says it)",
    "total": "Total",
    "pay_now": "Pay Now",
    "close": "Close",
    "stripe": "You pay on a page of Stripe; come back with your browser's back button. "
    "Credits do not expire and are non-refundable.",
    "open": "An invoice is open",
    "open_detail": "{total} for {credits} credits, due {due}. The credits appear here as soon as it is paid.",
    "partly_detail": "{paid} of {total} is paid, {remaining} remains.",
    "creating": "The invoice for {credits} credits is being made. This takes a moment.",
    "canceling": "The invoice for {credits} credits is being canceled. A payment that arrives first still counts.",
    "pending": "A payment is on its way, so the invoice is not canceled yet. It will bring {credits} credits.",
    "complete": "Complete payment",
    "cancel": "Cancel invoice",
    "no_history": "No purchase yet.",
    "older": "Older purchases",
    "back": "Back to Balance",
    "pdf": "PDF",
    "details": "Details",
    "of_invoice": "of invoice {number}",
    "payment_details": "Payment details",
    "invoice": "Invoice",
    "status": "Status",
    "ordered": "Ordered",
    "ordered_by": "Ordered by",
    "due_time": "Due",
    "paid_time": "Paid",
    "cancel_time": "Ended",
    "amount_paid": "Amount paid",
    "amount_remaining": "Remaining",
    "reference": "Reference",
    "away": "The connection was lost. Connecting again …",
    "unreachable": "Billing cannot be reached right now",
    "unreachable_detail": "Nothing is lost. Try again in a moment.",
    "again": "Try again",
    "seen_as": "Seen as",
    "TOP_UP_STATUS_CREATING": "Being made",
    "TOP_UP_STATUS_OPEN": "Open",
    "TOP_UP_STATUS_PAID": "Paid",
    "TOP_UP_STATUS_CANCELING": "Being canceled",
    "TOP_UP_STATUS_CANCELED": "Canceled",
    "TOP_UP_STATUS_EXPIRED": "Expired",
    "TOP_UP_STATUS_UNCOLLECTIBLE": "Uncollectible",
    "TOP_UP_STATUS_REVIEW": "In review",
    "TOP_UP_STATUS_FAILED": "Failed",
    "TOP_UP_STATUS_RESOLVED": "Resolved",
    "said_PAID": "The payment had arrived already: the credits are in your balance.",
    "said_CANCELED": "The invoice was canceled. Nothing was paid.",
    "said_EXPIRED": "The invoice had expired. Nothing was paid.",
    "automatic": "Automatic top-ups",
    "automatic_when": "When to buy",
    "AUTOMATIC_TOP_UP_STATE_OFF": "Off",
    "AUTOMATIC_TOP_UP_STATE_READY": "On",
    "AUTOMATIC_TOP_UP_STATE_BUYING": "Buying credits",
    "AUTOMATIC_TOP_UP_STATE_DECLINED": "The card could not be charged",
    "AUTOMATIC_TOP_UP_STATE_CAP_REACHED": "The monthly cap is reached",
    "AUTOMATIC_TOP_UP_STATE_SWITCHED_OFF": "Switched off",
    "bought_this_month": "Bought this month: {credits} credits.",
    "card": "Card",
    "no_card": "No card is saved.",
    "card_detail": "{brand} ending in {last4}, expires {expires}",
    "save_card": "Save a card",
    "replace_card": "Save another card",
    "remove_card": "Remove the card",
    "threshold_credits": "Buy when fewer credits are left than",
    "monthly_credit_cap": "Buy at most this many credits in a month (UTC)",
    "consent": "I agree that our saved card is charged for these credits, without asking again, each time that fewer "
    "are left than chosen here, and up to the monthly cap, until this is switched off.",
    "switch_on": "Switch on",
    "switch_off": "Switch off",
    "save": "Save",
    "brand": "Messages",
    "brand_detail": "Brand name, with which every message with a code begins",
    "said_CARD": "Your card appears here as soon as Stripe has confirmed it.",
    "said_SAVED": "Saved.",
    "CARD_MISSING": "Save a card first.",
    "CONSENT_MISSING": "Agree to the charges first.",
    "INVALID_FIELDS": "Credits must be at least the threshold, and the cap at least the credits of one purchase.",
    "TOP_UP_ALREADY_OPEN": "An invoice is open already. Complete or cancel it first.",
    "TOP_UP_BELOW_MINIMUM": "That is less than the smallest purchase.",
    "TOP_UP_ABOVE_MAXIMUM": "That is more than the largest purchase.",
    "BALANCE_ABOVE_MAXIMUM": "Your balance would become larger than allowed.",
    "TOP_UP_PARTLY_PAID": "A part of the invoice is paid, so it cannot be canceled.",
    "TOP_UP_NOT_CANCELABLE": "This invoice cannot be canceled any more.",
    "TOP_UP_NOT_FOUND": "This purchase does not exist.",
    "PERMISSION_MISSING": "You do not have the permission Subscribe.",
    "ORGANIZATION_SUSPENDED": "Your organization is suspended. Please contact us.",
    "CUSTOMER_BALANCE_UNSETTLED": "Your account at Stripe has to be settled first. Please contact us.",
    "BILLING_ADDRESS_MISSING": "Add a billing address to your organization first.",
    "REQUEST_ID_REUSED": "This form was used already. Please choose again.",
    "AMOUNT_INVALID": "Enter a whole number of credits.",
    "FORM_EXPIRED": "This form is too old. Please try again.",
    "LINK_REFUSED": "The payment page has an unexpected address. Please contact us.",
    "": "That did not work. Please try again.",
}  # fmt: skip
_INDONESIAN = {
    "language": "Bahasa Indonesia",
    "billing": "Tagihan",
    "balance": "Saldo",
    "history": "Riwayat",
    "credits": "{credits} kredit",
    "available": "kredit tersedia",
    "pays_for": "cukup untuk {sends}",
    "CHANNEL_EMAIL": "{sends} email",
    "CHANNEL_WHATSAPP": "{sends} pesan WhatsApp",
    "CHANNEL_SMS": "{sends} SMS",
    "low": "Saldo Anda menipis",
    "low_detail": "Saldo di bawah {threshold} kredit. Tanpa kredit, kode tidak dikirim.",
    "top_up": "Isi Saldo",
    "off_permission": "Hanya orang dengan izin Subscribe yang dapat membeli kredit. Hubungi administrator tim Anda.",
    "off_open": "Selesaikan atau batalkan dulu tagihan yang terbuka.",
    "off_partly": "Sebagian sudah dibayar, jadi tidak dapat dibatalkan.",
    "amount": "Kredit",
    "custom": "Jumlah lain",
    "custom_amount": "Jumlah lain: {minimum} kredit atau lebih",
    "currency": "Mata uang",
    "unit_price": "Harga per kredit",
    "subtotal": "Subtotal",
    "tax": "Pajak",
    "tax_estimated": "Pajak (perkiraan, pastinya di tagihan)",
    "total": "Total",
    "pay_now": "Bayar Sekarang",
    "close": "Tutup",
    "stripe": "Anda membayar di halaman Stripe; kembalilah dengan tombol kembali di peramban. "
    "Kredit tidak kedaluwarsa dan tidak dapat dikembalikan.",
    "open": "Ada tagihan yang terbuka",
    "open_detail": "{total} untuk {credits} kredit, jatuh tempo {due}. Kredit muncul di sini begitu dibayar.",
    "partly_detail": "{paid} dari {total} sudah dibayar, sisa {remaining}.",
    "creating": "Tagihan untuk {credits} kredit sedang dibuat. Mohon tunggu sebentar.",
    "canceling": "Tagihan untuk {credits} kredit sedang dibatalkan. Pembayaran yang tiba lebih dulu tetap dihitung.",
    "pending": "Pembayaran sedang diproses, jadi tagihan belum dibatalkan. Nanti masuk {credits} kredit.",
    "complete": "Selesaikan pembayaran",
    "cancel": "Batalkan tagihan",
    "no_history": "Belum ada pembelian.",
    "older": "Pembelian sebelumnya",
    "back": "Kembali ke Saldo",
    "pdf": "PDF",
    "details": "Rincian",
    "of_invoice": "tagihan {number}",
    "payment_details": "Rincian pembayaran",
    "invoice": "Tagihan",
    "status": "Status",
    "ordered": "Dipesan",
    "ordered_by": "Dipesan oleh",
    "due_time": "Jatuh tempo",
    "paid_time": "Dibayar",
    "cancel_time": "Berakhir",
    "amount_paid": "Jumlah dibayar",
    "amount_remaining": "Sisa",
    "reference": "Referensi",
    "away": "Sambungan terputus. Menyambung kembali …",
    "unreachable": "Tagihan sedang tidak dapat dijangkau",
    "unreachable_detail": "Tidak ada yang hilang. Coba lagi sebentar lagi.",
    "again": "Coba lagi",
    "seen_as": "Dilihat sebagai",
    "TOP_UP_STATUS_CREATING": "Sedang dibuat",
    "TOP_UP_STATUS_OPEN": "Terbuka",
    "TOP_UP_STATUS_PAID": "Lunas",
    "TOP_UP_STATUS_CANCELING": "Sedang dibatalkan",
    "TOP_UP_STATUS_CANCELED": "Dibatalkan",
    "TOP_UP_STATUS_EXPIRED": "Kedaluwarsa",
    "TOP_UP_STATUS_UNCOLLECTIBLE": "Tak tertagih",
    "TOP_UP_STATUS_REVIEW": "Ditinjau",
    "TOP_UP_STATUS_FAILED": "Gagal",
    "TOP_UP_STATUS_RESOLVED": "Terselesaikan",
    "said_PAID": "Pembayaran sudah tiba: kredit sudah masuk ke saldo Anda.",
    "said_CANCELED": "Tagihan dibatalkan. Tidak ada yang dibayar.",
    "said_EXPIRED": "Tagihan sudah kedaluwarsa. Tidak ada yang dibayar.",
    "automatic": "Isi ulang otomatis",
    "automatic_when": "Kapan membeli",
    "AUTOMATIC_TOP_UP_STATE_OFF": "Mati",
    "AUTOMATIC_TOP_UP_STATE_READY": "Hidup",
    "AUTOMATIC_TOP_UP_STATE_BUYING": "Sedang membeli kredit",
    "AUTOMATIC_TOP_UP_STATE_DECLINED": "Kartu tidak dapat didebit",
    "AUTOMATIC_TOP_UP_STATE_CAP_REACHED": "Batas bulanan tercapai",
    "AUTOMATIC_TOP_UP_STATE_SWITCHED_OFF": "Dimatikan",
    "bought_this_month": "Dibeli bulan ini: {credits} kredit.",
    "card": "Kartu",
    "no_card": "Belum ada kartu tersimpan.",
    "card_detail": "{brand} berakhiran {last4}, berlaku sampai {expires}",
    "save_card": "Simpan kartu",
    "replace_card": "Simpan kartu lain",
    "remove_card": "Hapus kartu",
    "threshold_credits": "Beli bila sisa kredit kurang dari",
    "monthly_credit_cap": "Beli paling banyak sekian kredit dalam sebulan (UTC)",
    "consent": "Saya setuju kartu tersimpan kami didebit untuk kredit ini, tanpa bertanya lagi, setiap kali sisanya "
    "kurang dari yang dipilih di sini, sampai batas bulanan, hingga dimatikan.",
    "switch_on": "Hidupkan",
    "switch_off": "Matikan",
    "save": "Simpan",
    "brand": "Pesan",
    "brand_detail": "Nama merek, yang mengawali setiap pesan berisi kode",
    "said_CARD": "Kartu Anda muncul di sini begitu Stripe mengonfirmasinya.",
    "said_SAVED": "Tersimpan.",
    "CARD_MISSING": "Simpan kartu dulu.",
    "CONSENT_MISSING": "Setujui pendebitan dulu.",
    "INVALID_FIELDS": "Kredit minimal sebesar batas sisa, dan batas bulanan minimal sebesar satu pembelian.",
    "TOP_UP_ALREADY_OPEN": "Sudah ada tagihan yang terbuka. Selesaikan atau batalkan dulu.",
    "TOP_UP_BELOW_MINIMUM": "Jumlah itu kurang dari pembelian terkecil.",
    "TOP_UP_ABOVE_MAXIMUM": "Jumlah itu melebihi pembelian terbesar.",
    "BALANCE_ABOVE_MAXIMUM": "Saldo Anda akan melebihi batas.",
    "TOP_UP_PARTLY_PAID": "Sebagian tagihan sudah dibayar, jadi tidak dapat dibatalkan.",
    "TOP_UP_NOT_CANCELABLE": "Tagihan ini tidak dapat dibatalkan lagi.",
    "TOP_UP_NOT_FOUND": "Pembelian ini tidak ada.",
    "PERMISSION_MISSING": "Anda tidak memiliki izin Subscribe.",
    "ORGANIZATION_SUSPENDED": "Organisasi Anda ditangguhkan. Silakan hubungi kami.",
    "CUSTOMER_BALANCE_UNSETTLED": "Akun Anda di Stripe perlu diselesaikan dulu. Silakan hubungi kami.",
    "BILLING_ADDRESS_MISSING": "Tambahkan dulu alamat penagihan ke organisasi Anda.",
    "REQUEST_ID_REUSED": "Formulir ini sudah dipakai. Silakan pilih lagi.",
    "AMOUNT_INVALID": "Masukkan jumlah kredit yang bulat.",
    "FORM_EXPIRED": "Formulir ini sudah terlalu lama. Silakan coba lagi.",
    "LINK_REFUSED": "Alamat halaman pembayaran tidak dikenal. Silakan hubungi kami.",
    "": "Tidak berhasil. Silakan coba lagi.",
}  # fmt: skip
_WORDS = {"en": _ENGLISH, "id": _INDONESIAN}


@dataclass(frozen=True, slots=True)
class Texts:
    """Everything that depends on the language. A text is HTML, and the values that it fills in are escaped."""

    language: str

    def __call__(self, key: str, **values: str) -> str:
        """The text with this key."""
        return _WORDS[self.language][key].format(**{name: escape(value) for name, value in values.items()})

    def has(self, key: str) -> bool:
        """Whether there is such a text."""
        return key in _ENGLISH

    def number(self, number: int) -> str:
        """Such as 1,000."""
        return self._separated(f"{number:,}")

    def money(self, money: Money) -> str:
        """Such as Rp150,000 or $10.00, with further decimals where they are not 0."""
        amount = (money.units + money.nanos / _NANOS).normalize()
        least = 0 if money.currency_code == "IDR" else 2
        decimals = max(least, -int(amount.as_tuple().exponent))
        symbol = _SYMBOLS[self.language].get(money.currency_code, f"{money.currency_code} ")
        return symbol + self._separated(f"{amount:,.{decimals}f}")

    def day(self, moment: datetime) -> str:
        """Such as 28 Nov 2026."""
        return f"{moment.day} {_MONTHS[self.language][moment.month - 1]} {moment.year}"

    def time(self, moment: datetime) -> str:
        """Such as 28 Nov 2026, 09:30 UTC."""
        clock = "%H:%M" if self.language == "en" else "%H.%M"
        return f"{self.day(moment)}, {moment.strftime(clock)} UTC"

    def _separated(self, number: str) -> str:
        return number if self.language == "en" else number.translate(str.maketrans(",.", ".,"))


LANGUAGES = {language: Texts(language) for language in _WORDS}
"""The first is the default."""


def preferred(accept_language: str) -> Texts:
    """The first known language of the header, which browsers send in the order of preference."""
    wanted = (each.split(";")[0].split("-")[0].strip().lower() for each in accept_language.split(","))
    return next((LANGUAGES[each] for each in wanted if each in LANGUAGES), LANGUAGES["en"])
