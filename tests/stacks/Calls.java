// The calls of matrix.py with grpc-java: java Calls ADDRESS TOKEN ORGANIZATION MODE

import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Collectors;
import pulsa.credit.v1.CreditServiceGrpc;
import pulsa.credit.v1.CreditServiceOuterClass.GetBalanceRequest;
import pulsa.credit.v1.CreditServiceOuterClass.WatchBalanceRequest;
import pulsa.otp.v1.DestinationOuterClass.Destination;
import pulsa.otp.v1.OtpServiceGrpc;
import pulsa.otp.v1.OtpServiceOuterClass.SendOtpRequest;

public final class Calls {
  private static final Set<Code> REPEATED = Set.of(Code.UNAVAILABLE, Code.CANCELLED, Code.DEADLINE_EXCEEDED);
  private static final Set<Code> REOPENED = Set.of(Code.UNAVAILABLE, Code.CANCELLED, Code.INTERNAL, Code.UNKNOWN);
  private final String organization;
  private final CreditServiceGrpc.CreditServiceBlockingStub credits;
  private final OtpServiceGrpc.OtpServiceBlockingStub otps;

  private Calls(String address, String token, String organization) {
    var metadata = new Metadata();
    metadata.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    var authorized = MetadataUtils.newAttachHeadersInterceptor(metadata);
    var channel = ManagedChannelBuilder.forTarget(address).usePlaintext().intercept(authorized).build();
    this.organization = organization;
    credits = CreditServiceGrpc.newBlockingStub(channel);
    otps = OtpServiceGrpc.newBlockingStub(channel);
  }

  public static void main(String[] arguments) throws Exception {
    var calls = new Calls(arguments[0], arguments[1], arguments[2]);
    switch (arguments[3]) {
      case "calls" -> calls.call();
      case "send" -> calls.send();
      case "watch" -> calls.watch();
      default -> throw new IllegalArgumentException(arguments[3]);
    }
    System.exit(0);
  }

  private void call() throws Exception {
    var balance = credits.getBalance(GetBalanceRequest.newBuilder().setOrganizationId(organization).build());
    System.out.println("unary " + balance.getBalance().getOrganizationId());
    System.out.println("error " + refusal(""));
    System.out.println("large " + refusal("x".repeat(1024 * 1024 - 6 - organization.length())));
  }

  private String refusal(String context) throws Exception {
    try {
      otps.sendOtp(SendOtpRequest.newBuilder().setOrganizationId(organization).setContext(context).build());
      return "";
    } catch (StatusRuntimeException error) {
      var reason = "";
      var fields = "";
      for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          reason = detail.unpack(ErrorInfo.class).getReason();
        } else if (detail.is(BadRequest.class)) {
          var violations = detail.unpack(BadRequest.class).getFieldViolationsList();
          fields = violations.stream().map(each -> each.getField()).collect(Collectors.joining(","));
        }
      }
      return reason + " " + fields;
    }
  }

  private void send() throws Exception {
    var ended = new AtomicBoolean();
    new Thread(
            () -> {
              try {
                System.in.readAllBytes();
              } catch (java.io.IOException closed) {
                // is the end too
              }
              ended.set(true);
            })
        .start();
    while (!ended.get()) {
      var id = UUID.randomUUID().toString();
      var destination = Destination.newBuilder().setEmail(id + "@example.com");
      var request = SendOtpRequest.newBuilder().setOrganizationId(organization).setRequestId(id);
      sendUntilAnswered(request.setDestination(destination).setPurpose("login").build());
      System.out.println("sent");
      Thread.sleep(50);
    }
  }

  private void sendUntilAnswered(SendOtpRequest request) throws Exception {
    while (true) {
      try {
        otps.withDeadlineAfter(5, TimeUnit.SECONDS).sendOtp(request);
        return;
      } catch (StatusRuntimeException error) {
        if (!REPEATED.contains(error.getStatus().getCode())) {
          throw error;
        }
        Thread.sleep(100);
      }
    }
  }

  private void watch() throws Exception {
    while (true) {
      System.out.println("open");
      try {
        var request = WatchBalanceRequest.newBuilder().setOrganizationId(organization).build();
        credits.watchBalance(request).forEachRemaining(
            answer -> System.out.println(answer.getBalance().getAvailableCredits()));
      } catch (StatusRuntimeException error) {
        if (!REOPENED.contains(error.getStatus().getCode())) {
          throw error;
        }
      }
      Thread.sleep(200);
    }
  }
}
