# The calls of matrix.py with the gem grpc: ruby calls.rb ADDRESS TOKEN ORGANIZATION MODE

require "securerandom"
require "grpc"
require "google/protobuf/well_known_types"
require "google/rpc/error_details_pb"
require "pulsa/credit/v1/credit_service_services_pb"
require "pulsa/otp/v1/otp_service_services_pb"

include Pulsa::Credit::V1
include Pulsa::Otp::V1

$stdout.sync = true
address, token, ORGANIZATION, mode = ARGV
METADATA = { "authorization" => "Bearer #{token}" }.freeze
CREDITS = CreditService::Stub.new(address, :this_channel_is_insecure)
OTPS = OtpService::Stub.new(address, :this_channel_is_insecure)

def refusal(context)
  OTPS.send_otp(SendOtpRequest.new(organization_id: ORGANIZATION, context: context), metadata: METADATA)
rescue GRPC::BadStatus => error
  reason = fields = ""
  error.to_rpc_status.details.each do |detail|
    reason = detail.unpack(Google::Rpc::ErrorInfo).reason if detail.is(Google::Rpc::ErrorInfo)
    next unless detail.is(Google::Rpc::BadRequest)
    fields = detail.unpack(Google::Rpc::BadRequest).field_violations.map(&:field).join(",")
  end
  "#{reason} #{fields}"
end

def calls
  balance = CREDITS.get_balance(GetBalanceRequest.new(organization_id: ORGANIZATION), metadata: METADATA).balance
  puts "unary #{balance.organization_id}"
  puts "error #{refusal('')}"
  puts "large #{refusal('x' * (1024 * 1024 - 6 - ORGANIZATION.length))}"
end

def send_until_answered(request)
  OTPS.send_otp(request, metadata: METADATA, deadline: Time.now + 5)
rescue GRPC::Unavailable, GRPC::Cancelled, GRPC::DeadlineExceeded
  sleep 0.1
  retry
end

def send_until_the_end
  ended = false
  Thread.new { $stdin.read and ended = true }
  until ended
    id = SecureRandom.uuid
    destination = Destination.new(email: "#{id}@example.com")
    send_until_answered(
      SendOtpRequest.new(organization_id: ORGANIZATION, request_id: id, destination: destination, purpose: "login")
    )
    puts "sent"
    sleep 0.05
  end
end

def watch
  loop do
    puts "open"
    begin
      balances = CREDITS.watch_balance(WatchBalanceRequest.new(organization_id: ORGANIZATION), metadata: METADATA)
      balances.each { |answer| puts answer.balance.available_credits }
    rescue GRPC::Unavailable, GRPC::Cancelled, GRPC::Internal, GRPC::Unknown, GRPC::Core::CallError
      # opened again; the last one, instead of a status, the gem 1.51 raised when HAProxy cut the stream
    end
    sleep 0.2
  end
end

{ "calls" => method(:calls), "send" => method(:send_until_the_end), "watch" => method(:watch) }.fetch(mode).call
